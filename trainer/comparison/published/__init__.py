"""The figures that the MealRec paper (arXiv:2603.01926v1) printed, as data, with what is known to be wrong in them."""

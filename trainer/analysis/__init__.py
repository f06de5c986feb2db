"""Where a trained model wins and loses, on the test set."""

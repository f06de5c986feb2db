"""Studies: a plan of many runs, carried out as trials of Ray Tune, tracked and tested together."""

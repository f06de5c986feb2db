"""Names of the files by which the folder of a study, and those of its runs, say what they are."""

#: in the folder of a study: what it consists of (`trainer.study.record`)
STUDY = "study.json"
#: in the folder of a run that ended without a result: why, and that the scheduler of a search stopped it
FAILURE, STOPPED = "failure.json", "stopped.json"

"""Experiments that take more than one run, one script per question: `python -m experiments.NAME` in the project folder.

README.md in this folder says which experiment made which committed file. This module has the names of the files that
only experiments write.
"""

# In a run folder.
TRUE_LOSS = "true_loss.csv"  # validation cross-entropy of a network trained on another loss
LAST_EPOCH = "last_epoch.csv"  # test accuracy of the last epoch
NOISE = "noise.csv"  # validation accuracy of the best epoch, with noise added
# In the folder that contains the run folders.
EXAMPLES = "plot_dataset_example.npz"
CURVES = "curves.csv"
SEEDS = "seeds.csv"
# About new photographs.
NEW_ACCURACY = "accuracy.csv"
NEW_CONFUSIONS = "confusions.csv"
# In the folder of an experiment that compares variants over several seeds.
RUNS = "runs.csv"
EFFECTS = "effects.csv"

"""Questions that take more than one run, one script each: `python -m experiments.NAME` from the project's folder.

README.md beside this file says which of them made which committed file. Here stand the names of the files that only
experiments write.
"""

# In a run folder.
TRUE_LOSS = "true_loss.csv"  # of a network that is trained on another loss
LAST_EPOCH = "last_epoch.csv"  # how good the last epoch is on the test split
NOISE = "noise.csv"  # how good the best epoch is on the validation split with noise added
# In the folder that holds the runs.
EXAMPLES = "plot_dataset_example.npz"
CURVES = "curves.csv"
SEEDS = "seeds.csv"
# About new photographs.
NEW_ACCURACY = "accuracy.csv"
NEW_CONFUSIONS = "confusions.csv"
# In the folder of a comparison of variants with several seeds.
RUNS = "runs.csv"
EFFECTS = "effects.csv"

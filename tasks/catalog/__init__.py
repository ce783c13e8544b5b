"""The embedded tasks, one file each: a module ``digits_mlp`` holding ``TASK`` is the task ``digits-mlp``."""

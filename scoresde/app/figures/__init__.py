"""What each picture of `--mode visualize` needs: from a model to the arrays that `scoresde.plots` draws."""

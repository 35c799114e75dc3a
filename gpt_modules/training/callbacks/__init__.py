"""What accompanies a run: checkpoints, guards, progress, samples, exports and the summary."""

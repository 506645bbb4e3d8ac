"""The job from the shell."""

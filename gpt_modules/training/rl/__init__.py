"""Reinforcement learning's own parts: sampling, rewards, and the loader over what was sampled."""

"""The GPT lineage as PyTorch Lightning components."""

"""Step 2 of ChatGPT: K answers to a prompt, ranked, and what the rankings say (Ouyang et al. 2022, section 3.1)."""

"""The DDPM: its data, model, training and sampling. Knows nothing of tickets."""

"""The networks: VQ-VAE, factored sparse transformer, conditions. No file, no device, no DeepSpeed in here."""

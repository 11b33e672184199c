"""The DDPM: data, U-Net, training, sampling, FLOPs. Knows no tickets. Begin with `train`."""

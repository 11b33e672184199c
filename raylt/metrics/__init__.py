"""What a trained ticket is worth: features, FID, KID, held-out loss, FLOPs, bytes."""

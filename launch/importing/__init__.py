"""Make a memory of LoRAs that other programs trained."""

"""Compare the cost of a memory with the published formulation, a LoRA and a bare linear."""

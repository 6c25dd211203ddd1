"""Benchmarks: what a memory costs beside the published formulation, a LoRA and a bare linear."""

"""What a run will take, worked out without the machines that it is for."""

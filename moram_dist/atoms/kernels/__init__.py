"""Triton kernels for a recall on a GPU.

    routing.py    the best atoms of each token, of one shard or of all
    mixture.py    the small arithmetic on the chosen atoms' numbers, forward and backward
    rows.py       chosen rows: mix, multiply, pick, add to them
    launch.py     launches the kernels as functions of tensors: shapes, grids, limits

``atoms.reference`` has the same functions in torch, and tests compare each kernel with it;
``atoms.backend`` chooses between the two.
"""

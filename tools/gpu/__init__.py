"""The steps of ``tools/gpu_check.py``, one file each. Each has ``run(record, how)``.

env           versions, device, missing packages
calibration   rates of products and copies, cost of a launch
kernel_tests  pytest tests/gpu
launches      a training step that must not wait for the device; its launches
layer         one linear with its memory, against the bare linear, published and PEFT
decode        tokens a second of a whole model
train         a training step of a whole model: time and peak memory
demo          the demo, by the training command
"""

"""Print a plan as tables of text."""

from __future__ import annotations

from launch.planning.estimate import Plan, TaskPlan

MB = 2**20


def table(plan: Plan) -> str:
    """Several blocks of lines."""
    return "\n".join([*_head(plan), *_memory(plan), *_tasks(plan), *_wire(plan), *_rest(plan)])


def _head(plan: Plan) -> list[str]:
    ranks = plan.ranks
    return [
        f"{plan.model}, {plan.num_parameters / 1e6:,.1f} M parameters in {plan.dtype}, "
        f"{len(plan.tasks)} tasks, {ranks.count} rank{'s' * (ranks.count > 1)} on {ranks.device}",
        f"placement of the memory: {plan.reason}",
    ]


def _memory(plan: Plan) -> list[str]:
    kept, tasks = plan.standing, plan.tasks
    largest = max(tasks, key=lambda task: task.atoms + task.training)
    quiet = plan.directions > 0
    lines = [
        ("base model, this rank's part", kept.base, ""),
        ("base model, gathered in a forward pass", kept.gathered, "at most"),
        ("base model, gathered ahead, once more", kept.arriving, "at most"),
        ("active atoms, optimizer, gradients", kept.trained, ""),
        ("bucket for gradients", kept.bucket, ""),
        (f"frozen atoms, before {largest.name}", largest.atoms, "exact"),
        (f"largest micro-batch, of {largest.name}", largest.training, "rehearsed"),
        *([("directions of older tasks' inputs", plan.directions, "at most")] * quiet),
        ("= peak of training, in tensors", plan.training, ""),
        *([("peak at a task's end, with moments of inputs", plan.boundary, "at most")] * quiet),
        ("peak of evaluation, on whole weights", plan.evaluation, "at most"),
        ("frozen atoms, after the last task", plan.atoms, "exact"),
        ("examples of a task, on the host", plan.examples, "about"),
    ]
    if plan.libraries:
        lines.append(("context and workspaces of CUDA's libraries", plan.libraries, "about"))
    if plan.process:
        lines.append(("peak of the process", plan.process, "measured here"))
    room = plan.ranks.memory
    fits = "fits" if plan.peak < room else "DOES NOT FIT"
    return [
        "",
        "memory of a rank, MB",
        *(f"  {name:44} {size / MB:12,.1f}  {kind}".rstrip() for name, size, kind in lines),
        f"  peak {plan.peak / MB:,.0f} MB: {fits} the {room / MB:,.0f} MB of a rank",
    ]


def _tasks(plan: Plan) -> list[str]:
    width = max(len(task.name) for task in plan.tasks)
    shape = max(10, *(len(_shape(task)) for task in plan.tasks))
    head = (
        f"  {'':{width}}  {'frozen':>6} {'examples':>8} {'steps':>7} {'micro-batches':>13} "
        f"{'tokens':>11}  {'largest':>{shape}} {'its MB':>8} {'MB/1k tokens':>12}"
    )
    return ["", "tasks (frozen atoms of each linear, of the rank with most tokens)", head] + [
        f"  {task.name:{width}}  {task.num_frozen:6} {task.num_examples:8,} {task.num_steps:7,} "
        f"{task.num_micro_batches:13,} {task.tokens:11,}  {_shape(task):>{shape}} "
        f"{task.training / MB:8,.1f} {_per_thousand(task) / MB:12.1f}"
        for task in plan.tasks
    ]


def _shape(task: TaskPlan) -> str:
    rows, length = task.largest
    texts, text_length = task.texts
    return f"{rows} x {length}" + (f" + {texts} x {text_length}" if texts else "")


def _per_thousand(task: TaskPlan) -> float:
    (rows, length), (texts, text_length) = task.largest, task.texts
    return 1000 * task.training / max(rows * length + texts * text_length, 1)


def _wire(plan: Plan) -> list[str]:
    if plan.ranks.in_group == 1:
        return ["", "received for the memory: nothing, one rank holds all of it"]
    width = max(len(task.name) for task in plan.tasks)
    names = list(plan.tasks[0].received)
    lines = [
        f"  {task.name:{width}}  "
        + " ".join(f"{sum(task.received[n]) / max(task.num_steps, 1):16,.0f}" for n in names)
        + f" {task.grown:14,}  {_takes(task)}"
        for task in plan.tasks
    ]
    head = " ".join(f"{name:>16}" for name in names)
    return [
        "",
        "received for the memory, bytes a step (mean) and rank, exact",
        f"  {'':{width}}  {head} {'at its end':>14}  takes",
        *lines,
    ]


def _takes(task: TaskPlan) -> str:
    if len(task.takes) < 2:
        return next(iter(task.takes), "")
    return ", ".join(
        f"{name} in {count:,} micro-batches" for name, count in sorted(task.takes.items())
    )


def _rest(plan: Plan) -> list[str]:
    files = sum(task.file for task in plan.tasks)
    steps = sum(task.num_steps for task in plan.tasks)
    beside = f", directions beside them at most {plan.directions:,}" if plan.directions else ""
    lines = [
        "",
        f"disk: {files / len(plan.tasks):,.0f} bytes a task, {files:,} in all, exact{beside}; two "
        f"files of progress of {plan.progress / MB:,.1f} MB while a task is trained",
    ]
    seconds = [task.seconds for task in plan.tasks if task.seconds is not None]
    if not seconds:
        return [*lines, f"time: {steps:,} steps; not estimated, this machine is not the run's"]
    minutes = sum(seconds) / 60
    speed = ""
    if plan.pictures:
        seen = sum(task.tokens / task.largest[1] for task in plan.tasks)
        speed = f" ({seen / sum(seconds):,.0f} pictures a second)"
    return [
        *lines,
        f"time: {steps:,} steps, {minutes:,.1f} minutes at the speed of one rank here{speed}; "
        "evaluation, and waiting for each other, come on top",
    ]

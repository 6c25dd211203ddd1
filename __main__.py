"""Run a command of this checkout without installing it: ``python CHECKOUT train --help``.

Python puts the folder of a ``__main__.py`` that it runs on its path. The scripts in ``launch/`` and
``eval/`` need just that, so they come here first, with the name of what to run as ``module``.
"""

import runpy

runpy.run_module(globals().get("module", "launch.moram"), run_name="__main__", alter_sys=True)

"""``optmerge demo``: real searches on a real pretrained encoder, on a laptop, without an account.

assets (pinned archives) -> tasks (four text data sets) -> zoo (base and experts, trained on the spot) -> run (searches,
one table, export). Only `train` needs torch.
"""

from optmerge.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]

"""The examples that `milepost --help` ends with."""

EXAMPLES = """Examples:

  milepost train deploy/configs/local.toml

  milepost train deploy/configs/local.toml --set run.iterations=20 --set learner.lr=1e-4

  milepost train --resume latest --set run.iterations=200

  milepost eval latest --split heldout --episodes 200 --json

  milepost eval latest --suite suite.toml

  milepost compare RUN-A RUN-B

  milepost show latest --worst

  milepost credit latest --strategy crbc,starpo --set credit.beta=0.95

  milepost experiment deploy/experiments/credit.toml --dry-run

  milepost config learner.lr

  milepost check-env my_project.my_env:MyEnv --set size=8

  milepost status

  milepost clean latest

  milepost doctor deploy/configs/local.toml --parity
"""

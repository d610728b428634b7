"""The examples that `milepost --help` and `milepost credit --help` end with."""

EXAMPLES = """Examples:

  milepost init my-project --template env

  milepost play milepost.envs.frozen_lake:FrozenLakeText --human

  milepost train deploy/configs/local.toml

  milepost train deploy/configs/local.toml --set run.iterations=20 --set learner.lr=1e-4

  milepost train --resume latest --set run.iterations=200

  milepost eval latest --split heldout --episodes 200 --json

  milepost eval latest --suite suite.toml

  milepost compare RUN-A RUN-B

  milepost promote latest --gate gate.toml

  milepost serve --port 8000

  milepost rollback --reason "answers too long"

  milepost talk latest

  milepost show latest --worst

  milepost view latest

  milepost credit latest --strategy crbc,starpo --set credit.beta=0.95

  milepost experiment deploy/experiments/credit.toml --dry-run

  milepost config learner.lr

  milepost check-env my_project.my_env:MyEnv --set size=8

  milepost status

  milepost clean latest

  milepost doctor deploy/configs/local.toml --parity
"""
CREDIT_EXAMPLES = """Examples:

  milepost credit latest

  milepost credit latest --strategy crbc,gigpo --set credit.w_step=2 --group g00000012

  milepost credit groups.jsonl --json

  milepost credit jobs/2026-01-01__12-00-00 --html credit.html

  milepost show latest --count 100 --atif > episodes.jsonl; milepost credit episodes.jsonl
"""

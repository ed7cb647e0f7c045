"""The operator's hand: `manage.py`. One file per noun; every error is one sentence, exit 0 ok, 1 failed, 2 usage."""

"""Search: races per operator, the whole iteration by Optuna, confirmation, verification."""

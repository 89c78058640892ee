"""Learning without backpropagating through hidden layers: credit estimators, rules, diagnostics."""

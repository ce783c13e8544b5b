"""Where terms come from: layers with rules, fused backward passes, operations without rules, compiled graphs."""

"""From a trained model to a smaller one that answers as well: pruned, distilled, or fine-tuned for INT8."""

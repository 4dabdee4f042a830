"""SFT and preference losses: formulas, and what gathers their inputs from a micro-batch."""

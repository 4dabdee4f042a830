"""SFT and preference losses: the formulas, and the classes that gather their inputs."""

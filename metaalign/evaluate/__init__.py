"""Does the model follow what it was told?"""

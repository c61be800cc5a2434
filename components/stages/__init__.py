"""One function per DVC stage; the settings sections in its signature are the stage's ``params:``."""

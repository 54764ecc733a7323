"""Single tools behind the commands: the demo, the doctor, the device check, the import of histories."""

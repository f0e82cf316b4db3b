"""The program on the workbench: turns a torch model into a bundle that devices can train."""

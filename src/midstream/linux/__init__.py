"""Every process, descriptor, /proc, cgroup and file system call of Midstream. Standard library only; no decisions."""

// SPDX-License-Identifier: Apache-2.0
/*
 * First process of a machine whose kernel has its drivers in modules, as a distribution's has: loads those that lie beside it,
 * in the order of their names, mounts the host's root by 9p, and becomes the program that the kernel's command line names
 * after "--".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static void must(int result, const char *what)
{
	if (result < 0) {
		printf("loader: %s: %s\n", what, strerror(errno));
		_exit(1); /* the kernel panics, and the machine ends */
	}
}

int main(int count, char **words)
{
	struct dirent **modules;
	int found = scandir("/modules", &modules, NULL, alphasort);

	must(found, "/modules");
	for (int i = 0; i < found; i++) {
		char path[512];
		int file;

		if (modules[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", modules[i]->d_name);
		file = open(path, O_RDONLY | O_CLOEXEC);
		must(file, path);
		if (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST)
			must(-1, path);
		close(file);
	}
	must(mount("root", "/host", "9p", MS_RDONLY, "trans=virtio,version=9p2000.L,msize=262144,cache=mmap"), "root");
	must(mount("devtmpfs", "/host/dev", "devtmpfs", 0, ""), "/dev");
	must(chdir("/host"), "/host");
	must(mount(".", "/", NULL, MS_MOVE, NULL), "/");
	must(chroot("."), "/");
	if (count > 1)
		execv(words[count - 1], words + count - 1);
	must(-1, count > 1 ? words[count - 1] : "nothing to run");
}

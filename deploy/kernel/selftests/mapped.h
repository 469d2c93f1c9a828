/* SPDX-License-Identifier: GPL-2.0 */
/* Files with known contents, victims that map them, and what of them is in the page cache. */
#ifndef MAPPED_H
#define MAPPED_H

#include "mrelease.h"
#include <sys/sysinfo.h>

/* A clean file of @bytes on disk, nothing of it in the page cache. */
static inline void make_file(const char *path, size_t bytes, uint64_t seed)
{
	static char block[MIB];
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);

	for (size_t at = 0; at < bytes; at += sizeof(block)) {
		size_t length = bytes - at < sizeof(block) ? bytes - at : sizeof(block);

		fill_pattern(block, length, at, seed);
		if (pwrite(fd, block, length, at) != (ssize_t)length) {
			printf("Bail out! %s: %s\n", path, strerror(errno));
			exit(1);
		}
	}
	fsync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
}

/* Pages of the file that are in the page cache. */
static inline long resident_pages(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat status;
	long resident = 0;

	fstat(fd, &status);
	size_t pages = (status.st_size + 4095) / 4096;
	unsigned char *there = calloc(pages, 1);
	void *map = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, fd, 0);

	if (!mincore(map, status.st_size, there))
		for (size_t i = 0; i < pages; i++)
			resident += there[i] & 1;
	munmap(map, status.st_size);
	free(there);
	close(fd);
	return resident;
}

static inline bool file_holds_pattern(const char *path, size_t bytes, uint64_t seed)
{
	static char block[MIB];
	int fd = open(path, O_RDONLY);
	bool ok = fd >= 0;

	for (size_t at = 0; ok && at < bytes; at += sizeof(block)) {
		size_t length = bytes - at < sizeof(block) ? bytes - at : sizeof(block);

		ok = pread(fd, block, length, at) == (ssize_t)length && holds_pattern(block, length, at, seed);
	}
	close(fd);
	return ok;
}

static inline void *map_file(const char *path, size_t bytes, int protection, int flags)
{
	int fd = open(path, protection & PROT_WRITE && flags & MAP_SHARED ? O_RDWR : O_RDONLY);
	void *map = mmap(NULL, bytes, protection, flags, fd, 0);

	if (map == MAP_FAILED) {
		printf("Bail out! mmap of %s: %s\n", path, strerror(errno));
		exit(1);
	}
	close(fd);
	return map;
}

static inline unsigned long read_all(const volatile char *map, size_t bytes)
{
	unsigned long sum = 0;

	for (size_t i = 0; i < bytes; i += 4096)
		sum += map[i];
	return sum;
}

/* Readahead pages that nobody mapped may stay, one part in 64, and folios in the list batch of a CPU, 31 in each. */
static inline bool is_gone(long pages, size_t bytes)
{
	return pages <= (long)(bytes / 4096 / 64 + 31 * get_nprocs());
}

static inline bool is_there(long pages, size_t bytes)
{
	return pages >= (long)(bytes / 4096 - bytes / 4096 / 64);
}

struct mapping {
	const char *path;
	size_t bytes;
	int protection, flags;
	struct cgroup *group;
};

static inline void maps_file(void *argument)
{
	struct mapping *mapping = argument;

	if (mapping->group)
		cgroup_enter(mapping->group);
	read_all(map_file(mapping->path, mapping->bytes, mapping->protection, mapping->flags), mapping->bytes);
	report_ready();
	for (;;)
		pause();
}

/* Kill and reap a victim that maps @mapping; true if it went as it should. */
static inline bool reap_mapper(struct mapping *mapping, unsigned int flags, int *ret)
{
	pid_t pid = spawn_ready(maps_file, mapping);
	int pidfd = pidfd_open_or_die(pid, 0);

	*ret = kill_and_reap(pidfd, flags);
	bool dead = killed(pid, pidfd);

	close(pidfd);
	return reaped(*ret) && dead;
}

#endif

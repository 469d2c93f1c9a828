// SPDX-License-Identifier: GPL-2.0
/*
 * Reaps against everything else that touches the same pages: truncate, hole punching and rewriting, reads and writes with
 * content checks, MADV_*, compaction (migration), drop_caches, and half of the time a memory limit that is too small for all
 * of it. Passes if no content was wrong and nobody else was killed; the run script looks at the kernel's log.
 */
#include "mapped.h"

#define STEADY_BYTES (16 * MIB)	/* never changes: whoever reads it checks it */
#define MOVING_BYTES (8 * MIB)	/* is truncated, punched and rewritten all the time */
#define BLOCK (64 * 1024)
#define LIMIT "24M"		/* less than the files and a victim: who faults has to reclaim */

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* What a victim does to its own memory, all the time. What a kernel has not is refused, and no harm. */
static const int advice[] = { MADV_COLD, MADV_DONTNEED, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_FREE, MADV_WILLNEED,
			      MADV_HUGEPAGE, MADV_COLLAPSE, MADV_MERGEABLE, MADV_RANDOM, MADV_NORMAL, MADV_UNMERGEABLE };

static const char *steady, *moving;
static struct cgroup group;

static bool over(void)
{
	return __atomic_load_n(&shared->go, __ATOMIC_SEQ_CST);
}

static void wrong(const char *where)
{
	__atomic_fetch_add(&shared->result, 1, __ATOMIC_SEQ_CST);
	printf("# wrong content: %s\n", where);
	fflush(stdout);
}

/* A block holds the pattern of one seed, its first word says which; or zeros, where a hole is or a write is under way. */
static bool block_is_whole(const void *block, uint64_t offset)
{
	const uint64_t *words = block;
	uint64_t seed = words[0] ^ pattern(offset, 0);

	for (size_t i = 0; i < BLOCK / 8; i++)
		if (words[i] && words[i] != pattern(offset + i * 8, seed))
			return false;
	return true;
}

static void victim(void *number)
{
	cgroup_enter(&group);
	int fd = open(steady, O_RDONLY), moving_fd = open(moving, O_RDWR);
	char *map = mmap(NULL, STEADY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	char *other = mmap(NULL, MOVING_BYTES, PROT_READ, MAP_PRIVATE, moving_fd, 0);
	volatile char sum = 0;

	char *own = touched(4 * MIB);

	for (size_t i = 0; i < STEADY_BYTES; i += 4096) {
		if (i / 4096 % 16 == (size_t)number % 16)
			map[i] = 1; /* a private copy in the middle of a folio */
		else
			sum += map[i];
	}
	report_ready();
	/* May fault beyond the end of a truncated file: SIGBUS is as good as a kill. */
	size_t next = (size_t)number;

	for (size_t i = 0;; i = (i + 4096) % MOVING_BYTES) {
		sum += other[i];
		if (i % (64 * 4096) == 0) {
			int one = advice[next++ % (sizeof(advice) / sizeof(*advice))];

			madvise(map, STEADY_BYTES, one);
			madvise(own, 4 * MIB, one);
		}
		own[i % (4 * MIB)]++;
		sum += map[i];
	}
}

static void rewrites(void *unused)
{
	static char block[BLOCK];
	int fd = open(moving, O_RDWR);
	uint64_t seed = 1;

	cgroup_enter(&group);
	while (!over()) {
		for (size_t at = 0; at < MOVING_BYTES; at += BLOCK, seed++) {
			if (at / BLOCK % 3 == seed % 3)
				fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, BLOCK);
			fill_pattern(block, BLOCK, at, seed);
			if (pwrite(fd, block, BLOCK, at) != BLOCK)
				wrong("short write");
			/* The only writer reads back what it wrote. */
			memset(block, 0, BLOCK);
			if (pread(fd, block, BLOCK, at) != BLOCK || !holds_pattern(block, BLOCK, at, seed))
				wrong("read back");
		}
		fdatasync(fd);
		for (size_t at = 0; at < MOVING_BYTES; at += BLOCK)
			if (pread(fd, block, BLOCK, at) != BLOCK || !block_is_whole(block, at))
				wrong("after fdatasync");
		if (seed % 5 == 0 && (ftruncate(fd, MOVING_BYTES / 2) || ftruncate(fd, MOVING_BYTES)))
			wrong("truncate");
	}
	_exit(0);
}

static void reads(void *unused)
{
	cgroup_enter(&group);
	while (!over())
		if (!file_holds_pattern(steady, STEADY_BYTES, 21))
			wrong("reader of a file that never changes");
	_exit(0);
}

static void maps(void *unused)
{
	int fd = open(steady, O_RDONLY);

	cgroup_enter(&group);
	while (!over()) {
		char *map = mmap(NULL, STEADY_BYTES, PROT_READ, MAP_SHARED, fd, 0);

		if (!holds_pattern(map, STEADY_BYTES, 0, 21))
			wrong("mapper of a file that never changes");
		munmap(map, STEADY_BYTES);
	}
	_exit(0);
}

static void presses(void *unused)
{
	for (int i = 0; !over(); i++) {
		cgroup_write(&group, "memory.reclaim", "4M");
		if (i % 7 == 0)
			write_text("/proc/sys/vm/compact_memory", "1");
		if (i % 31 == 0)
			write_text("/proc/sys/vm/drop_caches", "1");
		usleep(20000);
	}
	_exit(0);
}

int main(void)
{
	int seconds = atoi(getenv("MRELEASE_STRESS_SECONDS") ?: "60"), kills = 0, bad = 0;
	victim_fn others[] = { rewrites, reads, maps, presses };
	pid_t pids[4];
	char events[256], stat[256];

	steady = strdup(work_path("steady"));
	moving = strdup(work_path("moving"));
	make_file(steady, STEADY_BYTES, 21);
	make_file(moving, MOVING_BYTES, 22);
	shared_new();
	struct shared *all = shared;

	group = cgroup_new("stress");
	snprintf(events, sizeof(events), "%s/memory.events", group.path);
	snprintf(stat, sizeof(stat), "%s/memory.stat", group.path);
	for (int i = 0; i < 4; i++)
		pids[i] = spawn(others[i], NULL);
	for (double end = now() + seconds; now() < end; kills++) {
		cgroup_write(&group, "memory.max", (int)((end - now()) / 5) % 2 ? "max" : LIMIT);
		shared = NULL; /* the victim's own */
		pid_t pid = spawn_ready(victim, (void *)(long)kills);
		int pidfd = pidfd_open_or_die(pid, 0);

		usleep(kills * 1009 % 15000);
		int ret = kill_and_reap(pidfd, kills % 4 || !has_flag(PROCESS_MRELEASE_KEEP_FILE) ? 0 : PROCESS_MRELEASE_KEEP_FILE);

		if ((ret && ret != -ESRCH) || !gone_within(pidfd) || waitpid(pid, NULL, 0) != pid)
			bad++;
		close(pidfd);
		munmap(shared, sizeof(*shared));
		shared = all;
	}
	__atomic_store_n(&shared->go, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 4; i++) {
		int status;

		if (waitpid(pids[i], &status, 0) != pids[i] || status)
			bad++;
	}
	/* By the limit or by memory.reclaim: a slow kernel may have so much of the latter that it never comes to the former */
	long limited = read_key(events, "max"), scanned = read_key(stat, "pgscan");

	sync();
	write_text("/proc/sys/vm/drop_caches", "3");
	bool right = file_holds_pattern(steady, STEADY_BYTES, 21);

	tap(!bad && !shared->result && right && kills > 0 && scanned > 0, "reap_against_everything_else",
	    "%d kills in %d s, %d went wrong, %d wrong contents, %ld times at the memory limit, %ld pages scanned", kills, seconds,
	    bad, shared->result, limited, scanned);
	figure("stress_kills", "%d", kills, "kills");
	unlink(steady);
	unlink(moving);
	cgroup_remove(&group);
	return tap_end();
}

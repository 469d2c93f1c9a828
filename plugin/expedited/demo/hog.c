/*
 * A workload that holds memory, for the demo and the tests. One static binary, so that its image is one file.
 *
 *   --bytes N          anonymous memory, touched, in every process (suffixes K, M, G)
 *   --huge             let the kernel use huge pages for it; else it is 4 KiB pages, as a long-lived heap mostly is
 *   --children K       as many forks of the first process, each with its own N bytes and its own threads
 *   --threads N        threads that burn CPU, in every process
 *   --file PATH --map BYTES
 *                      make a file of that size, read it into the page cache and map it
 *   --shm BYTES        shared anonymous memory, touched, common to all the processes
 *   --ignore-term      every process ignores SIGTERM
 *   --term-delay-ms M  the first process needs M ms after SIGTERM, then exits 0 (without it: exits 0 at once)
 *   --exit-after-ms M  exits 0 of its own accord M ms after it is ready
 *
 * Prints READY when all of it, the children's included, is there. Works as pid 1: reaps whatever is its child by then.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct wishes {
	size_t bytes, map, shm;
	int children, threads, term_delay_ms, exit_after_ms;
	int ignore_term, huge;
	const char *file;
};

static void fail(const char *what)
{
	fprintf(stderr, "hog: %s: %s\n", what, strerror(errno));
	exit(1);
}

static size_t size(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	switch (*end) {
	case 'G':
		value <<= 10; /* fall through */
	case 'M':
		value <<= 10; /* fall through */
	case 'K':
		value <<= 10;
		end++;
	}
	if (end == text || *end) {
		fprintf(stderr, "hog: not a number of bytes: %s\n", text);
		exit(2);
	}
	return value;
}

static void touch(size_t bytes, int flags, int huge)
{
	size_t page = sysconf(_SC_PAGESIZE);
	volatile char *memory;

	if (!bytes)
		return;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	madvise((void *)memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t at = 0; at < bytes; at += page)
		memory[at] = (char)(at / page) | 1;
}

static void map_file(const char *path, size_t bytes)
{
	static char block[1 << 16];
	int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	volatile char *memory;
	char sum = 0;

	if (file < 0)
		fail(path);
	memset(block, 'x', sizeof(block));
	for (size_t done = 0; done < bytes; done += sizeof(block))
		if (write(file, block, sizeof(block)) < 0)
			fail(path);
	if (fsync(file)) /* clean pages: only those can be dropped */
		fail(path);
	memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
	if (memory == MAP_FAILED)
		fail(path);
	for (size_t at = 0; at < bytes; at += 4096)
		sum += memory[at];
	(void)sum;
	close(file);
}

static void *burn(void *nothing)
{
	volatile unsigned long count = 0;

	(void)nothing;
	for (;;)
		count++;
	return NULL;
}

static void start_threads(int count)
{
	for (int i = 0; i < count; i++) {
		pthread_attr_t attributes;
		pthread_t thread;

		pthread_attr_init(&attributes);
		pthread_attr_setstacksize(&attributes, 1 << 16);
		errno = pthread_create(&thread, &attributes, burn, NULL);
		if (errno)
			fail("pthread_create");
	}
}

static void child(const struct wishes *wishes, int ready)
{
	touch(wishes->bytes, MAP_PRIVATE, wishes->huge);
	if (write(ready, "", 1) != 1)
		fail("pipe");
	close(ready);
	start_threads(wishes->threads);
	for (;;)
		pause();
}

static void wait_until_told(const struct wishes *wishes, const sigset_t *signals)
{
	for (;;) {
		int number = 0;

		sigwait(signals, &number);
		if (number == SIGCHLD) {
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		} else if (number == SIGALRM) {
			exit(0);
		} else if (!wishes->ignore_term) {
			struct timespec delay = {
				.tv_sec = wishes->term_delay_ms / 1000,
				.tv_nsec = wishes->term_delay_ms % 1000 * 1000000L,
			};

			nanosleep(&delay, NULL);
			exit(0);
		}
	}
}

static struct wishes parse(int count, char **arguments)
{
	static const struct option options[] = {
		{"bytes", required_argument, NULL, 'b'},     {"children", required_argument, NULL, 'c'},
		{"threads", required_argument, NULL, 't'},   {"file", required_argument, NULL, 'f'},
		{"map", required_argument, NULL, 'm'},	     {"shm", required_argument, NULL, 's'},
		{"ignore-term", no_argument, NULL, 'i'},     {"term-delay-ms", required_argument, NULL, 'd'},
		{"huge", no_argument, NULL, 'h'},	     {"exit-after-ms", required_argument, NULL, 'e'},
		{NULL, 0, NULL, 0},
	};
	struct wishes wishes = {0};
	int option;

	while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
		switch (option) {
		case 'b':
			wishes.bytes = size(optarg);
			break;
		case 'c':
			wishes.children = atoi(optarg);
			break;
		case 't':
			wishes.threads = atoi(optarg);
			break;
		case 'f':
			wishes.file = optarg;
			break;
		case 'm':
			wishes.map = size(optarg);
			break;
		case 's':
			wishes.shm = size(optarg);
			break;
		case 'i':
			wishes.ignore_term = 1;
			break;
		case 'd':
			wishes.term_delay_ms = atoi(optarg);
			break;
		case 'e':
			wishes.exit_after_ms = atoi(optarg);
			break;
		case 'h':
			wishes.huge = 1;
			break;
		default:
			exit(2);
		}
	}
	return wishes;
}

int main(int count, char **arguments)
{
	struct wishes wishes = parse(count, arguments);
	sigset_t signals;
	int ready[2];

	if (pipe2(ready, O_CLOEXEC))
		fail("pipe");
	touch(wishes.shm, MAP_SHARED, 0);
	if (wishes.ignore_term)
		signal(SIGTERM, SIG_IGN);
	for (int i = 0; i < wishes.children; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (!pid)
			child(&wishes, ready[1]);
	}
	close(ready[1]);

	/* Blocked before the threads start, so that none of them is interrupted and sigwait() below gets every one. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGALRM);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	touch(wishes.bytes, MAP_PRIVATE, wishes.huge);
	if (wishes.file)
		map_file(wishes.file, wishes.map);
	for (int i = 0; i < wishes.children; i++) {
		char byte;

		if (read(ready[0], &byte, 1) != 1) {
			fprintf(stderr, "hog: a child ended before it was ready\n");
			exit(1);
		}
	}
	start_threads(wishes.threads);
	printf("READY\n");
	fflush(stdout);
	if (wishes.exit_after_ms) {
		struct itimerval timer = {
			.it_value.tv_sec = wishes.exit_after_ms / 1000,
			.it_value.tv_usec = wishes.exit_after_ms % 1000 * 1000L,
		};

		setitimer(ITIMER_REAL, &timer, NULL);
	}
	wait_until_told(&wishes, &signals);
}

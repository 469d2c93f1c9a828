/*
 * Processes of odd shapes, for the engine's tests. Prints READY when it has its shape; then waits to be killed.
 *
 *   shared BYTES     two processes, no threads, with one mm between them (CLONE_VM)
 *   vfork BYTES      a child that never lets its parent out of vfork()
 *   leaderless BYTES the first thread exits, a second one goes on
 *   zombies N        N children that have exited and are never waited for
 *   fleeing N        N processes, each of which always forks and exits: the same crowd, never the same pids
 *   bomb N           forks as fast as it can, its children too, until there are N of them
 *   heir             exits with status 7 as soon as its child ends
 *   as PID           one process with that very number
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "shapes: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void ready(void)
{
	if (write(1, "READY\n", 6) != 6)
		_exit(1);
}

static void wait_for_the_end(void)
{
	for (;;)
		pause();
}

static void touch(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	memset(memory, 1, bytes);
}

static int sharer(void *nothing)
{
	(void)nothing;
	ready();
	wait_for_the_end();
	return 0;
}

static void *second_thread(void *leader)
{
	/* READY only when the leader is a zombie: pthread_join() would wait for what never comes */
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", getpid());
	(void)leader;
	while (state != 'Z') {
		FILE *file = fopen(path, "r");

		if (!file || fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
			fail(path);
		fclose(file);
		usleep(1000);
	}
	ready();
	wait_for_the_end();
	return NULL;
}

static void flee(void)
{
	for (;;) {
		pid_t pid = fork();

		if (pid > 0)
			_exit(0);
		if (pid < 0)
			usleep(100);
	}
}

static void explode(volatile int *crowd, int most)
{
	for (;;) {
		if (__atomic_add_fetch(crowd, 1, __ATOMIC_SEQ_CST) > most) {
			__atomic_sub_fetch(crowd, 1, __ATOMIC_SEQ_CST);
			usleep(1000);
			continue;
		}
		if (fork() < 0)
			__atomic_sub_fetch(crowd, 1, __ATOMIC_SEQ_CST);
	}
}

int main(int count, char **arguments)
{
	const char *shape = count > 1 ? arguments[1] : "";
	long long number = count > 2 ? atoll(arguments[2]) : 0;

	if (!strcmp(shape, "shared")) {
		char *stack = malloc(1 << 16);

		touch(number);
		if (clone(sharer, stack + (1 << 16), CLONE_VM | SIGCHLD, NULL) < 0)
			fail("clone");
	} else if (!strcmp(shape, "vfork")) {
		touch(number);
		if (!vfork())
			sharer(NULL);
	} else if (!strcmp(shape, "leaderless")) {
		pthread_t thread;

		touch(number);
		if (pthread_create(&thread, NULL, second_thread, NULL))
			fail("pthread_create");
		syscall(SYS_exit, 0);
	} else if (!strcmp(shape, "zombies")) {
		for (int i = 0; i < number; i++) {
			siginfo_t info;
			pid_t pid = fork();

			if (!pid)
				_exit(0);
			if (pid < 0 || waitid(P_PID, pid, &info, WEXITED | WNOWAIT))
				fail("zombie");
		}
		ready();
	} else if (!strcmp(shape, "fleeing")) {
		/* Their zombies would otherwise be left to whoever adopts them */
		signal(SIGCHLD, SIG_IGN);
		prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
		for (int i = 0; i < number; i++)
			if (!fork())
				flee();
		ready();
	} else if (!strcmp(shape, "bomb")) {
		int *crowd = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		signal(SIGCHLD, SIG_IGN);
		ready();
		explode(crowd, number);
	} else if (!strcmp(shape, "heir")) {
		pid_t pid = fork();

		if (!pid)
			wait_for_the_end();
		ready();
		waitpid(pid, NULL, 0);
		_exit(7);
	} else if (!strcmp(shape, "as")) {
		pid_t wanted = number;
		struct clone_args how = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1};
		long pid = syscall(SYS_clone3, &how, sizeof(how));

		if (pid < 0)
			fail("clone3");
		if (pid) {
			int status;

			waitpid(pid, &status, 0);
			return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
		}
		ready();
	} else {
		fprintf(stderr, "shapes: no shape %s\n", shape);
		return 2;
	}
	wait_for_the_end();
}

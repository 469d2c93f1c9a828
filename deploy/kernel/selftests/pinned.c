// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that outlives its process: another process holds a reference to the mm (mm_users), so that the victim's own exit
 * frees nothing, and may read on. And how fast a plain reap is.
 */
#include "mrelease.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#define VICTIM_BYTES (64 * MIB)

struct target {
	pid_t pid;
	void *address;
};

/* A page of ours that a userfault keeps from being there, until somebody fills it by *uffd. */
static char *hole_new(int *uffd)
{
	struct uffdio_api api = { .api = UFFD_API };
	char *hole = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = { .range = { .start = (uintptr_t)hole, .len = 4096 },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };

	*uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (*uffd < 0 || ioctl(*uffd, UFFDIO_API, &api) || ioctl(*uffd, UFFDIO_REGISTER, &range)) {
		shared->result = -errno;
		_exit(1);
	}
	return hole;
}

/* In a child of whoever reads into the hole: says when it is there. By then it has the victim's mm, and keeps it. */
static void tells_of_fault(int uffd)
{
	struct uffd_msg message;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(uffd, &message, sizeof(message)) == sizeof(message) && message.event == UFFD_EVENT_PAGEFAULT)
		__atomic_store_n(&shared->go, 1, __ATOMIC_SEQ_CST);
}

/*
 * Reads the victim's memory into a page of ours that a userfault keeps from ever being there: process_vm_readv() holds on to
 * the victim's mm all the while.
 */
static void pins_mm(void *argument)
{
	struct target *target = argument;
	int uffd;
	char *hole = hole_new(&uffd);

	if (!fork()) {
		tells_of_fault(uffd);
		_exit(0);
	}
	struct iovec here = { hole, 8 }, there = { target->address, 8 };

	process_vm_readv(target->pid, &here, 1, &there, 1, 0);
	_exit(2);
}

static void victim(void *group)
{
	cgroup_enter(group);
	char *memory = touched(VICTIM_BYTES);

	shared->address = memory;
	report_ready();
	for (;;)
		pause();
}

/* Whether who pins the victim's mm has come to its userfault, and waits there; shared->result says why not. */
static bool waits_in_hole(void)
{
	for (int i = 0; i < WAIT_MS && !shared->result; i++) {
		if (__atomic_load_n(&shared->go, __ATOMIC_SEQ_CST) >= 1)
			return true;
		usleep(1000);
	}
	return false;
}

/* A kernel without userfaultfd, or that does not give it to us, can't run a test; anything else is a failure. */
static void no_hole(const char *name)
{
	if (shared->result == -ENOSYS || shared->result == -EPERM)
		tap_skip(name, "no userfaultfd: %s", code(shared->result));
	else
		tap(false, name, "nobody waits for a page: %s", code(shared->result));
}

static void test_pinned(void)
{
	struct cgroup group = cgroup_new("pinned");
	pid_t pid = spawn_ready(victim, &group);
	struct target target = { pid, shared->address };
	int pidfd = pidfd_open_or_die(pid, 0);
	pid_t pinner = spawn(pins_mm, &target);

	if (!waits_in_hole()) {
		no_hole("pinned_mm");
		goto out;
	}

	int ret;

	if (has_flag(PROCESS_MRELEASE_REAP_KILL)) {
		ret = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
	} else {
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		gone_within(pidfd);
		ret = mrelease(pidfd, 0);
	}
	bool dead = killed(pid, pidfd);
	long left = cgroup_stat(&group, "anon");

	if (has_flag(PROCESS_MRELEASE_REAP_KILL))
		tap(!ret && dead && left < (long)MIB, "reap_kill_frees_a_pinned_mm", "%s, %ld KiB left", code(ret), left / 1024);
	else
		tap(ret == -ESRCH && dead && left > (long)(VICTIM_BYTES - MIB), "stock_leaves_a_pinned_mm", "%s, %ld KiB left",
		    code(ret), left / 1024);
	figure("pinned_mm_left", "%ld", left, "bytes");
out:
	finish(pinner);
	finish(pid);
	close(pidfd);
	for (int i = 0; i < 1000 && cgroup_stat(&group, "anon") > (long)MIB; i++)
		usleep(1000);
	tap(cgroup_stat(&group, "anon") < (long)MIB, "the_pinners_end_frees_the_rest", "%ld KiB left",
	    cgroup_stat(&group, "anon") / 1024);
	cgroup_remove(&group);
}

/* A private mapping of a file that is in the page cache, written to: what counts is in a copy of our own. */
static void modifies(void *file)
{
	char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, *(int *)file, 0);

	memset(memory, 'm', 4096);
	shared->address = memory;
	report_ready();
	for (;;)
		pause();
}

/*
 * Reads there twice in one call, which pins the mm for both: the first time into a hole that a child fills when it is told
 * to, and only then looks for the page of the second.
 */
static void reads_twice(void *argument)
{
	struct target *target = argument;
	int uffd;
	char *hole = hole_new(&uffd), content = 0;
	struct uffdio_zeropage zero = { .range = { .start = (uintptr_t)hole, .len = 4096 } };

	if (!fork()) {
		tells_of_fault(uffd);
		wait_for(&shared->go, 2);
		ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
		_exit(0);
	}
	struct iovec here[] = { { hole, 1 }, { &content, 1 } };
	struct iovec there[] = { { target->address, 1 }, { target->address, 1 } };

	shared->result = process_vm_readv(target->pid, here, 2, there, 2, 0) << 8 | content;
	__atomic_store_n(&shared->go, 3, __ATOMIC_SEQ_CST);
	wait(NULL);
	_exit(0);
}

static void test_lost_copy(void)
{
	int file = memfd_create("original", 0);
	char page[4096];

	memset(page, 'f', sizeof(page));
	if (write(file, page, sizeof(page)) != sizeof(page)) {
		tap(false, "lost_copy", "no file: %s", strerror(errno));
		return;
	}
	pid_t pid = spawn_ready(modifies, &file);
	struct target target = { pid, shared->address };
	int pidfd = pidfd_open_or_die(pid, 0);
	pid_t reader = spawn(reads_twice, &target);

	if (!waits_in_hole()) {
		no_hole("lost_copy");
		goto out;
	}

	bool patched = has_flag(PROCESS_MRELEASE_REAP_KILL);
	int ret = 0;

	if (patched)
		ret = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
	else
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	gone_within(pidfd);
	__atomic_store_n(&shared->go, 2, __ATOMIC_SEQ_CST);
	wait_for(&shared->go, 3);

	int bytes = shared->result >> 8, content = shared->result & 0xff;

	/* Who comes too late for what was written gets nothing: never what the file has in its place */
	if (patched)
		tap(!ret && bytes == 1 && !content, "a_lost_copy_is_not_read_from_the_file", "%s, %d bytes, '%c'", code(ret),
		    bytes, content ?: '-');
	else
		tap(bytes == 2 && content == 'm', "stock_keeps_the_copy_for_who_reads", "%d bytes, '%c'", bytes, content ?: '-');
out:
	finish(reader);
	finish(pid);
	close(pidfd);
	close(file);
}

static void big(void *group)
{
	cgroup_enter(group);
	touched(256 * MIB);
	report_ready();
	for (;;)
		pause();
}

static void test_reap_256_mib(void)
{
	struct cgroup group = cgroup_new("big");
	pid_t pid = spawn_ready(big, &group);
	int pidfd = pidfd_open_or_die(pid, 0);
	long before = cgroup_stat(&group, "anon");
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);
	long after = cgroup_stat(&group, "anon");

	tap(reaped(ret) && dead && before > (long)(255 * MIB) && after < (long)MIB, "256_mib_of_anonymous_memory",
	    "%s, %ld MiB before, %ld KiB after", code(ret), before >> 20, after >> 10);
	close(pidfd);

	double seconds = reap_held(big, &group, 0, &ret);

	tap(!ret, "256_mib_all_by_the_reaper", "%s in %.0f ms", code(ret), seconds * 1e3);
	figure("reap_rate", "%.2f", 0.25 * 1.073741824 / seconds, "GB/s");
	cgroup_remove(&group);
}

static void many_vmas(void *group)
{
	cgroup_enter(group);
	char *memory = mmap(NULL, 20000 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	for (int i = 0; i < 10000; i++) {
		mprotect(memory + i * 8192, 4096, PROT_READ | PROT_WRITE);
		memory[i * 8192] = 1;
	}
	report_ready();
	for (;;)
		pause();
}

static void test_reap_10000_vmas(void)
{
	struct cgroup group = cgroup_new("vmas");
	int ret;

	double seconds = reap_held(many_vmas, &group, 0, &ret);
	long after = cgroup_stat(&group, "anon");

	tap(!ret && after < (long)MIB, "10000_vmas", "%s in %.0f ms, %ld KiB after", code(ret), seconds * 1e3, after >> 10);
	cgroup_remove(&group);
}

int main(void)
{
	test_pinned();
	test_lost_copy();
	test_reap_256_mib();
	test_reap_10000_vmas();
	return tap_end();
}

// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that outlives its process: another process holds a reference to the mm (mm_users), so that the victim's own exit
 * frees nothing. And how fast a plain reap is.
 */
#include "mrelease.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#define VICTIM_BYTES (64 * MIB)

struct target {
	pid_t pid;
	void *address;
};

/*
 * Reads the victim's memory into a page of ours that a userfault keeps from ever being there: process_vm_readv() holds on to
 * the victim's mm all the while.
 */
static void pins_mm(void *argument)
{
	struct target *target = argument;
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	void *hole = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = { .range = { .start = (uintptr_t)hole, .len = 4096 },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range)) {
		shared->result = -errno;
		_exit(1);
	}
	__atomic_store_n(&shared->go, 1, __ATOMIC_SEQ_CST);
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

static bool sleeps(pid_t pid)
{
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	FILE *file = fopen(path, "r");

	if (file) {
		if (fscanf(file, "%*d %*s %c", &state) != 1)
			state = 0;
		fclose(file);
	}
	return state == 'S' || state == 'D';
}

static void test_pinned(void)
{
	struct cgroup group = cgroup_new("pinned");
	pid_t pid = spawn_ready(victim, &group);
	struct target target = { pid, shared->address };
	int pidfd = pidfd_open_or_die(pid, 0);
	pid_t pinner = spawn(pins_mm, &target);

	if (!wait_for(&shared->go, 1)) {
		tap(false, "pinned_mm", "no userfaultfd: %s", code(shared->result));
		goto out;
	}
	for (int i = 0; i < 1000 && !sleeps(pinner); i++)
		usleep(1000);
	usleep(200000);

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
	test_reap_256_mib();
	test_reap_10000_vmas();
	return tap_end();
}

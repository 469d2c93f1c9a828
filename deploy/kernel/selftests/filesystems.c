// SPDX-License-Identifier: GPL-2.0
/* Clean exclusive files on all sorts of file systems: which are page cache that goes, and which are the memory itself. */
#include "mapped.h"
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/vfs.h>

static bool patched;

/* A container's image is the lower layer of an overlay: its page cache is that of the file below. */
static void test_overlay(void)
{
	const char *top = strdup(work_path("overlay"));
	char lower[300], path[300], options[1000];
	struct mapping mapping = { path, 16 * MIB, PROT_READ, MAP_PRIVATE };
	int ret;

	snprintf(options, sizeof(options), "mkdir -p %s/lower %s/upper %s/work %s/merged", top, top, top, top);
	if (system(options)) {
		tap(false, "file_of_an_overlays_lower_layer", "no folders for it: %s", options);
		return;
	}
	snprintf(lower, sizeof(lower), "%s/lower/file", top);
	snprintf(path, sizeof(path), "%s/merged", top);
	make_file(lower, mapping.bytes, 15);
	snprintf(options, sizeof(options), "lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", top, top, top);
	if (mount("overlay", path, "overlay", 0, options)) {
		if (errno == ENODEV)
			tap_skip("file_of_an_overlays_lower_layer", "this kernel has no overlay");
		else
			tap(false, "file_of_an_overlays_lower_layer", "mount: %s", strerror(errno));
		return;
	}
	snprintf(path, sizeof(path), "%s/merged/file", top);
	bool ok = reap_mapper(&mapping, 0, &ret);
	long pages = resident_pages(lower);

	tap(ok && (patched ? is_gone(pages, mapping.bytes) : is_there(pages, mapping.bytes)) &&
		    file_holds_pattern(path, mapping.bytes, 15),
	    "file_of_an_overlays_lower_layer", "%s, %ld pages left", code(ret), pages);
	snprintf(path, sizeof(path), "%s/merged", top);
	umount(path);
}

static void test_tmpfs(void)
{
	const char *path = "/dev/shm/mrelease-file";
	struct mapping mapping = { path, 16 * MIB, PROT_READ, MAP_PRIVATE };
	struct statfs status;
	int ret;

	if (statfs("/dev/shm", &status) || status.f_type != TMPFS_MAGIC) {
		tap_skip("tmpfs_is_no_page_cache", "/dev/shm is no tmpfs");
		return;
	}
	make_file(path, mapping.bytes, 9);
	bool ok = reap_mapper(&mapping, 0, &ret);

	tap(ok && is_there(resident_pages(path), mapping.bytes) && file_holds_pattern(path, mapping.bytes, 9),
	    "tmpfs_is_no_page_cache", "%s, contents right", code(ret));
	unlink(path);
}

/* ramfs has the page cache alone: its mapping is unevictable. */
static void test_ramfs(void)
{
	const char *folder = strdup(work_path("ramfs")), *path = strdup(work_path("ramfs/file"));
	struct mapping mapping = { path, 8 * MIB, PROT_READ, MAP_PRIVATE };
	int ret;

	mkdir(folder, 0755);
	if (mount("ramfs", folder, "ramfs", 0, NULL)) {
		tap_skip("ramfs_is_no_page_cache", "no ramfs: %s", strerror(errno));
		return;
	}
	make_file(path, mapping.bytes, 16);
	bool ok = reap_mapper(&mapping, 0, &ret);

	tap(ok && resident_pages(path) == (long)(mapping.bytes / 4096) && file_holds_pattern(path, mapping.bytes, 16),
	    "ramfs_is_no_page_cache", "%s, contents right", code(ret));
	umount(folder);
}

/* Path of a file on a disk of @type; false if the run script could mount none. */
static bool on_disk(const char *type, char *path, size_t size)
{
	snprintf(path, size, "%s/%s", getenv("MRELEASE_DISKS") ?: "", type);
	if (access(path, F_OK))
		return false;
	snprintf(path, size, "%s/%s/file", getenv("MRELEASE_DISKS"), type);
	return true;
}

/* Other file systems: their folios may have private data of their own. */
static void test_disk(const char *type)
{
	char name[64], file[512];
	struct mapping mapping = { file, 32 * MIB, PROT_READ, MAP_PRIVATE };
	int ret;

	snprintf(name, sizeof(name), patched ? "file_on_%s_is_freed" : "file_on_%s_stays_on_stock", type);
	if (!on_disk(type, file, sizeof(file))) {
		tap_skip(name, "this kernel or machine has no %s", type);
		return;
	}
	make_file(file, mapping.bytes, 17);
	bool ok = reap_mapper(&mapping, 0, &ret);
	long pages = resident_pages(file);

	tap(ok && (patched ? is_gone(pages, mapping.bytes) : is_there(pages, mapping.bytes)) &&
		    file_holds_pattern(file, mapping.bytes, 17),
	    name, "%s, %ld of %zu pages left", code(ret), pages, mapping.bytes / 4096);
	unlink(file);
}

/* Its pages are the disk's own memory. */
static void test_dax(void)
{
	char file[512];
	struct mapping mapping = { file, 32 * MIB, PROT_READ, MAP_PRIVATE };
	int ret;

	if (!on_disk("dax", file, sizeof(file))) {
		tap_skip("dax_is_no_page_cache", "this kernel or machine has no DAX");
		return;
	}
	make_file(file, mapping.bytes, 19);
	bool ok = reap_mapper(&mapping, 0, &ret);

	tap(ok && file_holds_pattern(file, mapping.bytes, 19), "dax_is_no_page_cache", "%s, contents right", code(ret));
	unlink(file);
}

int main(void)
{
	patched = has_flag(PROCESS_MRELEASE_KEEP_FILE);
	shared_new();
	test_overlay();
	test_tmpfs();
	test_ramfs();
	test_disk("xfs");
	test_disk("btrfs");
	test_dax();
	return tap_end();
}

/* SPDX-License-Identifier: MIT */
/* What the walks of fault injection do not see, and why; see linked.c. */
#ifndef HMM_INJECT_KNOWN_H
#define HMM_INJECT_KNOWN_H

struct inject_known {
	const char *site; /* as inject.h names it; a '*' at the end stands for anything */
	const char *why;
};

/* Reached, and rightly without effect on anything that can be seen. */
static const struct inject_known inject_silent[] = {
	{"umm/arena.c umm_arena_reset SYS_mmap", "what was taken stays mapped there, and the next run replaces it"},
	{"umm/inside.c are_there SYS_mincore",
	 "a page that went unsaid is not seen then, and seldom one does: hmm inside"},
	{"umm/inside.c umm_inside_registered ioctl UFFDIO_CONTINUE#2", "no change is under way: what was said stands"},
	{"umm/inside.c release_staging SYS_m*", "staging stays full; MOVE says EEXIST then, and it is tried again"},
	{"umm/inside.c release_staging ioctl UFFDIO_UNREGISTER", "staging stays full; as those before"},
	{"umm/maps.c next_by_query ioctl PROCMAP_QUERY*", "the text says the same"},
	{"umm/follow.c bind_to *", "a hint to the scheduler"},
	{"umm/follow.c cpu_of *", "a hint to the scheduler"},
	{"umm/monitor.c monitor_thread sched_getaffinity", "a hint to the scheduler"},
	{"umm/monitor.c umm_monitor_create sched_getaffinity", "a hint to the scheduler"},
	{"umm/space.c umm_same_pidns *", "a hint to the scheduler"},
	{"umm/space.c umm_space_let_go *", "the monitor is stopped first, then"},
	{"umm/space.c spare_maps_put SYS_munmap", "address space is lost"},
	{"umm/arena.c mark *", "what a child has of it, or a core, is wasted"},
	{"umm/arena.c umm_arena_free *", "address space is lost"},
	{"umm/arena.c arena_release *", "zeros by hand"},
	{"umm/uffd.c umm_uffd_writeprotect *", "a page that is away is not shown as such, nor as written"},
	{"umm/quarantine.c page_is_absent pread", "then it lasts its full time"},
	{"hmm/engine.c hmm_create open", "figures of a linked engine need none"},
	{"hmm/linked.c hmm_mm_open open", "figures of a linked engine need none"},
	{"hmm/linked.c own_pages SYS_madvise", "what stays shared is not the device's"},
	{"hmm/linked.c manage_mapping SYS_madvise#2", "undoes what failed: a child lacks it, as it did before"},
	{"hmm/linked.c let_go SYS_madvise", "a child lacks it: SIGSEGV, no zeros; doc of hmm_mm_open()"},
	{"hmm/reg.c hmm_reg_cache_close munmap", "address space is lost"},
	{"hmm/reg.c hmm_reg_cache_open munmap", "address space is lost"},
	{"hmm/overtaken.c keep_leaf umm_alloc",
	 "a child that is told of too late is said to lack something, and none is here"},
	{"hmm/take.c take_copies SYS_madvise", "what stays shared is not taken"},
	{"hmm/take.c fill SYS_mmap", "nothing was unmapped"},
	{"hmm/take.c pipe_ready fcntl", "fewer pages at a time"},
	{"hmm/take.c is_locked SYS_madvise", "it means locked for one error only"},
	{"hmm/take.c take_place SYS_mremap*", "the other way to move it"},
	{"hmm/take.c has_room getrlimit", "as if there were no limit"},
	{"hmm/take.c file_open *", "the other way to find the file"},
	{"drivers/area.c drv_map madvise", "a hint"},
	{"drivers/area.c drv_area_release munmap", "address space is lost"},
	{"drivers/area.c drv_area_reserve madvise", "a hint"},
	{"drivers/file/backing.c file_backing_open getrlimit", "the write itself says so"},
	{"drivers/file/backing.c try_direct *", "through the page cache, then"},
	{"drivers/file/backing.c measure fstatfs", "as if there were no file system to be kept from filling up"},
	{"drivers/file/backing.c open_file open#2", "without O_EXCL it opens as well"},
	{"drivers/file/backing.c open_file unlink", "a name is left"},
	{"drivers/file/backing.c open_in_directory unlink", "a name is left"},
	{"drivers/file/io.c xfer_new io_uring_queue_init", "by pwritev(), then"},
	{"drivers/file/backing.c file_backing_empty ftruncate", "who uses the file next is told that it is not empty"},
	{"drivers/file/io.c xfer_new munmap", "address space is lost"},
	{"drivers/file/io.c xfer_free munmap*", "address space is lost"},
	{"drivers/lz4/slab.c slab_zap madvise", "memory is lost, and no longer counted"},
	{"drivers/lz4/lz4.c work_free munmap", "memory is lost, and no longer counted"},
	{"drivers/dmirror/memory.c listed fopen", "as if there were no node without CPUs"},
	{"drivers/uring/uring.c slot_fill *", "a plain transfer, then"},
	{0},
};

/* Whether they are reached, and noticed, is a matter of time, or of the machine's: an event in between, a huge page. */
static const struct inject_known inject_chance[] = {
	{"umm/monitor.c spares_open *", "descriptors are used up"},
	{"umm/monitor.c monitor_thread read", "somebody kicks it while it waits"},
	{"umm/monitor.c umm_monitor_read read*", "somebody else reads it; descriptors are used up"},
	{"umm/monitor.c backlog_push umm_alloc", "several faults in one read"},
	{"umm/uffd.c umm_uffd_is_changing *", "a change meets a fork"},
	{"umm/quarantine.c page_is_absent pread", "a drop has not come to its end"},
	{"umm/quarantine.c dropper_is_through *", "a drop has not come to its end"},
	{"umm/maps.c next_by_text *", "the mapping comes and goes"},
	{"umm/space.c umm_space_sync_until SYS_nanosleep", "who changes takes longer than some yields"},
	{"umm/hook.c nap *", "who moves mappings meets who forks"},
	{"umm/inside.c run_one SYS_madvise", "a page is shared"},
	{"hmm/linked.c child_events read", "the child changes while it is filled"},
	{"hmm/linked.c child_remaps_move umm_alloc", "the child moves mappings while it is filled"},
	{"hmm/take.c take_readonly SYS_mremap#2", "memory changes while it is taken"},
	{"hmm/take.c move_all SYS_madvise", "a page is shared"},
	{"hmm/take.c hold SYS_mprotect#2",
	 "a page stays; and what goes back was read-only, and is writable if this fails: open"},
	{"hmm/take.c fetch SYS_madvise", "memory was swapped out by the kernel"},
	{"umm/uffd.c umm_uffd_move *", "huge pages are not to be had everywhere"},
	{"hmm/block.c *", "huge pages are not to be had everywhere"},
	{"drivers/dmirror/dmirror.c huge_to_device *", "huge pages are not to be had everywhere"},
	{"drivers/dmirror/dmirror.c is_huge *", "huge pages are not to be had everywhere"},
	{0},
};

/* Memory that is not to be had is waited for, as by the kernel's own faults: these fail 50 times, not for ever. */
static const struct inject_known inject_patient[] = {
	{"umm/uffd.c copy ioctl UFFDIO_COPY", "a page to place"},
	{"umm/uffd.c umm_uffd_zeropage ioctl UFFDIO_ZEROPAGE", "a page table to place it in"},
	{"hmm/residency.c hmm_leaf_get umm_alloc*", "a record of it"},
	{"drivers/dmirror/dmirror.c copy_checked process_vm_*", "seconds, until the range is given up"},
	{0},
};

/* Not reached by a program that has the engine in itself. */
static const struct inject_known inject_unreached[] = {
	{"hmm/take.c leave umm_alloc", "something else in a hole of the arena: hmm take"},
	{"umm/arena.c umm_alloc calloc", "hmm run's"},
	{"drivers/ofi/*", "hmm run's, and hmm serve's"},
	{"hmm/written.c *", "open: no scenario asks what was written"},
	{"umm/pagemap.c umm_page_take_written *", "open: no scenario asks what was written"},
	{"umm/follow.c umm_guard_start *", "hmm run's"},
	{"umm/follow.c guard_main *", "hmm run's"},
	{"umm/space.c umm_space_sync_until SYS_nanosleep", "a change that lasts: umm realtime"},
	{"hmm/asleep.c *", "hmm run's"},
	{"hmm/budget.c *", "hmm run's"},
	{"hmm/demote.c *", "hmm run's"},
	{"hmm/reclaim.c *", "hmm run's"},
	{"hmm/walkers.c *", "hmm run's"},
	{"hmm/discover.c register_early *", "hmm run's"},
	{"hmm/ahead.c *", "hmm run's"},
	{"hmm/engine.c hmm_mms_get malloc", "hmm run's"},
	{"hmm/engine.c hmm_find_unforked *", "hmm run's"},
	{"hmm/fault.c learn_pid open", "hmm run's"},
	{"hmm/fault.c status_of *", "hmm run's"},
	{"hmm/linked.c give_locked *", "OpenCL's devices; test/unit/opencl"},
	{"hmm/overtaken.c keep_one *", "hmm run's"},
	{"hmm/overtaken.c hmm_overtaken_own umm_alloc", "hmm run's"},
	{"hmm/iset.c make_room malloc", "hmm run's"},
	{"hmm/take.c has_room SYS_pread64", "RLIMIT_AS is set"},
	{"hmm/linked.c linked_advise SYS_madvise", "nobody orders it of a linked engine"},
	{"hmm/node.c *", "wants a machine with a node that has no CPU"},
	{"drivers/file/backing.c open_block *", "wants a block device that may be overwritten"},
	{"drivers/file/io.c file_io_trim madvise", "hmm run's"},
	{"test/inject/inject.c *", "no part of the engine"},
	{0},
};

#endif

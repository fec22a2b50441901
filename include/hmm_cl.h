/* SPDX-License-Identifier: MIT */
/*
 * hmm_cl: OpenCL devices on plain memory.
 *
 * A kernel is given pointers of the program's own: of malloc(), mmap(), a static
 * array.  What it is to write moves to the device when it is launched, stays
 * there, and comes back page by page when the CPU touches it; what it only reads
 * is copied there, and copied anew where the program has written to it since.
 * Any device of OpenCL 1.2 or newer will do.
 *
 * DOC: how to use it
 *
 *	umm_space_open_self(&space);
 *	hmm_mm_open(space, &mm);
 *	hmm_cl_open(space, mm, NULL, &cl);
 *	hmm_cl_build(cl, source, NULL, log, sizeof(log), &program);
 *	hmm_cl_kernel_open(cl, program, "scale", &kernel);
 *	hmm_cl_arg(kernel, 0, in, n * sizeof(*in), HMM_CL_READ);
 *	hmm_cl_arg(kernel, 1, out, n * sizeof(*out), HMM_CL_WRITE);
 *	hmm_cl_launch(kernel, 1, NULL, &n, NULL, 0, NULL, &event);
 *	... out[i] waits for the kernel, and is there ...
 *	hmm_cl_kernel_close(kernel);
 *	hmm_cl_close(cl);
 *	hmm_mm_close(mm);
 *	umm_space_close(space);
 *
 * DOC: what may be handed over
 *
 * The OpenCL runtime calls malloc, and takes locks of its own, while it copies.
 * Who waits for a page that is on a device must therefore hold no lock that the
 * runtime wants, and malloc's are among these.  So:
 *
 *  - Big arrays, and memory of hmm_cl_alloc() or mmap().  Of an argument only
 *    whole pages move; what shares a page with something else, as the first and
 *    last bytes of a malloc'ed array do with malloc's records, is copied instead.
 *  - Before free() of what has been an argument: hmm_cl_release().  malloc writes
 *    its records into what is free, under its lock.
 *  - Not: memory of which the runtime itself makes use, stacks of threads.
 *
 * Where the CPU reaches the device's memory (devices of this machine with
 * fine-grained buffers) pages come back without the runtime, and nothing of this
 * can make anybody wait for ever.
 *
 * Fork brings back what has to go through the runtime before anything is locked.
 */
#ifndef HMM_CL_H
#define HMM_CL_H

#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 300
#endif
#include <CL/cl.h>

#include "hmm.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/** An OpenCL device that holds pages of a space. */
struct hmm_cl;

/** A kernel with the arguments that it is to be launched with. */
struct hmm_cl_kernel;

/* What a kernel does with an argument. */
#define HMM_CL_READ 1u
#define HMM_CL_WRITE 2u /* what it leaves as it was stays so */
#define HMM_CL_READ_WRITE 3u
#define HMM_CL_WRITE_ALL 6u /* every byte: what was there is not brought along */

#define HMM_CL_COPIES (1u << 0) /* copy through the runtime, also where the CPU reaches the device's memory */

/* What hmm_cl_advise() may be told of memory. */
#define HMM_CL_NORMAL 0u
#define HMM_CL_STAY 1u        /* it does not move: what a kernel writes is copied back when it has ended */
#define HMM_CL_HOME 2u        /* the CPU is where it is wanted: it goes back when the kernel has ended, unasked */
#define HMM_CL_HERE 3u        /* the device is: when there is no room, all else goes first */
#define HMM_CL_READ_MOSTLY 4u /* by both: what a kernel reads the CPU has, too, also where a kernel wrote it */

struct hmm_cl_params {
	cl_device_id device; /* NULL: the first that there is */
	cl_context context;  /* one with that device, the caller's; NULL: one of its own */
	uint64_t memory;     /* bytes of the device's memory that may be used; 0: three quarters of it */
	unsigned flags;      /* HMM_CL_* */
};

struct hmm_cl_stats {
	uint64_t launches;
	uint64_t bytes_in;   /* copied to the device */
	uint64_t bytes_out;  /* copied from it */
	uint64_t bytes_held; /* of the device's memory in use */
	uint64_t pages_here; /* pages that are on the device and nowhere else */
	uint64_t evictions;  /* ranges that had to leave for others */
	uint64_t retries;    /* launches begun anew, because something changed meanwhile */
};

/**
 * hmm_cl_open() - let an OpenCL device hold pages of a space
 * @space: the caller's own, open until hmm_cl_close().
 * @mm: its engine, open as long.
 * @params: NULL: as if all were 0.
 * @clp: out; ended with hmm_cl_close().
 *
 * Several devices may be open in one space.  A page is on one of them at a time;
 * what they only read each has a copy of.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ENODEV	there is no OpenCL device, or not the one asked for
 *	-EINVAL	unknown flags, or a context without the device
 *	-ENOMEM	no memory
 *	-ENOSPC	the engine has as many devices as it can
 *	-EAGAIN	no thread could be made
 *	-EIO	the device does not work
 */
int hmm_cl_open(struct umm_space *space, struct hmm_mm *mm, const struct hmm_cl_params *params, struct hmm_cl **clp);

/**
 * hmm_cl_close() - wait for what runs, bring everything back, and end a device
 * @cl: NULL is fine.
 *
 * Its kernels are closed before.  What the device cannot give back is lost:
 * whoever touches it gets SIGBUS.
 *
 * Context: No other call on @cl may run.  Not in callbacks.
 * Return: 0, or
 *	-ENOMEM	not all could be brought back, and nothing has ended
 *	-EAGAIN	as of hmm_mm_remove_device()
 */
int hmm_cl_close(struct hmm_cl *cl);

/**
 * hmm_cl_context(), hmm_cl_device(), hmm_cl_queue() - what a device works with
 * @cl: of hmm_cl_open().
 *
 * The queue is in order; what is put into it by other means is not known here.
 *
 * Context: Thread-safe.
 * Return: @cl's, until hmm_cl_close().
 */
cl_context hmm_cl_context(struct hmm_cl *cl);
cl_device_id hmm_cl_device(struct hmm_cl *cl);
cl_command_queue hmm_cl_queue(struct hmm_cl *cl);

/**
 * hmm_cl_message() - the last error of a device, in words
 * @cl: of hmm_cl_open().
 * @line: out; one line without newline, that says what failed and what to do.
 * @len: bytes at @line.
 *
 * Context: Thread-safe.
 */
void hmm_cl_message(struct hmm_cl *cl, char *line, size_t len);

/**
 * hmm_cl_build() - build a program
 * @cl: of hmm_cl_open().
 * @source: in OpenCL C.
 * @options: as of clBuildProgram(); may be NULL.
 * @log: out; what the compiler has to say, also on success; may be NULL.
 * @len: bytes at @log.
 * @programp: out; ended with clReleaseProgram().
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	it cannot be built: see @log
 *	-ENOMEM	no memory
 *	-EOPNOTSUPP	the device has no compiler
 *	-EIO	the device does not work
 */
int hmm_cl_build(struct hmm_cl *cl, const char *source, const char *options, char *log, size_t len,
		 cl_program *programp);

/**
 * hmm_cl_kernel_open() - a kernel of a program
 * @cl: of hmm_cl_open().
 * @program: built for @cl's device, in its context.
 * @name: of the kernel.
 * @kernelp: out; ended with hmm_cl_kernel_close().
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-ENOENT	the program has no such kernel
 *	-EINVAL	it was not built
 *	-ENOMEM	no memory
 *	-EIO	the device does not work
 */
int hmm_cl_kernel_open(struct hmm_cl *cl, cl_program program, const char *name, struct hmm_cl_kernel **kernelp);

/**
 * hmm_cl_kernel_close() - end a kernel
 * @kernel: NULL is fine.  It may be running.
 *
 * Context: No other call on @kernel may run.
 */
void hmm_cl_kernel_close(struct hmm_cl_kernel *kernel);

/**
 * hmm_cl_arg() - memory as an argument
 * @kernel: of hmm_cl_kernel_open().
 * @index: of the argument, a pointer to global or constant memory.
 * @pointer: the program's memory, or the device's of hmm_cl_svm_alloc(); NULL: a null pointer.
 * @length: bytes.
 * @access: HMM_CL_READ, HMM_CL_WRITE, HMM_CL_READ_WRITE or HMM_CL_WRITE_ALL.
 *
 * Stays until it is set again.  Nothing moves before hmm_cl_launch().  What a kernel
 * leaves unwritten of HMM_CL_WRITE_ALL has no certain contents afterwards.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	no such argument, unknown access, or nothing at a pointer
 *	-EOVERFLOW	a range that wraps
 */
int hmm_cl_arg(struct hmm_cl_kernel *kernel, unsigned index, const void *pointer, size_t length, unsigned access);

/**
 * hmm_cl_value() - a value as an argument, or local memory
 * @kernel: of hmm_cl_kernel_open().
 * @index: of the argument.
 * @value: NULL: local memory.
 * @size: bytes.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	no such argument, or it is of another size
 *	-EIO	the device does not work
 */
int hmm_cl_value(struct hmm_cl_kernel *kernel, unsigned index, const void *value, size_t size);

/**
 * hmm_cl_launch() - run a kernel on the program's memory
 * @kernel: with its arguments set.
 * @dims: 1, 2 or 3.
 * @offset, @global, @local: work items, as of clEnqueueNDRangeKernel(); offset and local may be NULL.
 * @nwait, @wait: events to wait for first.
 * @event: out; complete when the kernel has ended and what it has written can be had, an error where not
 *	all of that could be copied back; released by clReleaseEvent().  May be NULL.
 *
 * Brings in what is missing; what was on the device stays.  Until the kernel has
 * ended nobody gets a page that it writes, and the hooked calls that change the
 * memory wait.  Kernels of one device run in the order in which they are launched.
 *
 * On error nothing was launched, and all memory is as it was; but for that of
 * HMM_CL_WRITE_ALL, whose contents are then uncertain.  Where there is memory of
 * hmm_cl_svm_alloc() that is not fine-grained the kernel may run all the same: what
 * gives that back to the CPU behind it can fail.  hmm_cl_wait() waits for it then, too.
 *
 * Context: Thread-safe; launches of one device take turns.  Not in callbacks.  May sleep, and fault.
 * Return: 0, or
 *	-EINVAL	an argument or work size that OpenCL refuses, or arguments in one piece of memory that
 *		the device cannot have aligned all at once
 *	-EFAULT	a hole or unreadable memory in an argument, or a page that is lost
 *	-EPERM	an argument that is written to lies in memory that is read-only
 *	-ENOSPC	the arguments do not fit into the memory that the device may use
 *	-ENOMEM	no memory, on the device or here
 *	-EBUSY	the memory would not hold still
 *	-EIO	the device does not work (any more)
 */
int hmm_cl_launch(struct hmm_cl_kernel *kernel, unsigned dims, const size_t *offset, const size_t *global,
		  const size_t *local, unsigned nwait, const cl_event *wait, cl_event *event);

/**
 * hmm_cl_wait() - wait until all that was launched has ended
 * @cl: of hmm_cl_open().
 *
 * Context: Thread-safe.  Not in callbacks.  May sleep.
 * Return: 0, or
 *	-EIO	a kernel that was launched since the last call of this has failed, or not all that it wrote
 *		could be copied back
 */
int hmm_cl_wait(struct hmm_cl *cl);

/**
 * hmm_cl_prefetch() - bring memory in, or back, ahead of need
 * @cl: of hmm_cl_open().
 * @pointer: the program's memory.
 * @length: bytes, not 0.
 * @access: as of hmm_cl_arg(): what a kernel is about to do with it; 0: back to the CPU.
 *
 * Returns when it is there.  Partial success is success.
 *
 * Context: Thread-safe.  Not in callbacks.  May sleep, and fault.
 * Return: 0, or
 *	-EINVAL	no length, or unknown access
 *	-EOVERFLOW	a range that wraps
 *	-EFAULT	a hole, or unreadable memory
 *	-EPERM	it is to be written to, and is read-only
 *	-ENOSPC	it does not fit into the memory that the device may use
 *	-ENOMEM	no memory, on the device or here
 *	-EIO	the device does not work (any more)
 */
int hmm_cl_prefetch(struct hmm_cl *cl, const void *pointer, size_t length, unsigned access);

/**
 * hmm_cl_advise() - say where memory is wanted
 * @cl: of hmm_cl_open().
 * @pointer: the program's memory, to whole pages.
 * @length: bytes, not 0.
 * @advice: HMM_CL_NORMAL, HMM_CL_STAY, HMM_CL_HOME, HMM_CL_HERE or HMM_CL_READ_MOSTLY; it replaces what was said
 *before.
 *
 * Of an argument or a range its first page decides what HMM_CL_HOME and HMM_CL_HERE
 * mean for all of it.  What was said stays also when the memory is unmapped.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	no length, or unknown advice
 *	-EOVERFLOW	a range that wraps
 *	-ENOMEM	no memory
 */
int hmm_cl_advise(struct hmm_cl *cl, const void *pointer, size_t length, unsigned advice);

/**
 * hmm_cl_alloc() - memory that is made to move
 * @cl: of hmm_cl_open().
 * @size: bytes, not 0.
 * @pp: out; zeros, ended with hmm_cl_free().
 *
 * Whole pages with nobody else's in between, so that all of it moves and nothing
 * of anybody's waits for it.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	no size
 *	-ENOMEM	no memory
 */
int hmm_cl_alloc(struct hmm_cl *cl, size_t size, void **pp);

/**
 * hmm_cl_free() - give back memory of hmm_cl_alloc()
 * @cl: as it was then, or another of the same space.
 * @p: NULL is fine.
 * @size: as it was then.
 *
 * Waits for kernels of @cl that use it.
 *
 * Context: Thread-safe.  Not in callbacks.
 */
void hmm_cl_free(struct hmm_cl *cl, void *p, size_t size);

/**
 * hmm_cl_svm_alloc() - memory in which pointers mean the same on both sides
 * @cl: of hmm_cl_open().
 * @size: bytes, not 0.
 * @pp: out; ended with hmm_cl_svm_free(), at the latest by hmm_cl_close().
 *
 * Every kernel of @cl may follow pointers into it; arguments may point there
 * (hmm_cl_arg()).  Where the device has it fine-grained both sides see it at any
 * time; else the CPU must not touch it from a launch to its end.
 *
 * Context: Thread-safe.  Not in callbacks.
 * Return: 0, or
 *	-EINVAL	no size
 *	-EOPNOTSUPP	the device has no shared virtual memory (OpenCL 2.0)
 *	-ENOMEM	no memory, or 256 pieces are there
 *	-EIO	the device does not work
 */
int hmm_cl_svm_alloc(struct hmm_cl *cl, size_t size, void **pp);

/**
 * hmm_cl_svm_free() - give back memory of hmm_cl_svm_alloc()
 * @cl: as it was then.
 * @p: NULL is fine.
 *
 * Waits for all kernels of @cl.
 *
 * Context: Thread-safe.  Not in callbacks.
 */
void hmm_cl_svm_free(struct hmm_cl *cl, void *p);

/**
 * hmm_cl_release() - bring memory back and keep nothing of it
 * @cl: of hmm_cl_open().
 * @pointer: the program's memory.
 * @length: bytes; ranges of which a byte is in it go as a whole.
 *
 * Waits for kernels that use it.  To be called before free().
 *
 * Context: Thread-safe.  Not in callbacks.  May sleep, and fault.
 * Return: 0, or
 *	-EOVERFLOW	a range that wraps
 *	-ENOMEM	no memory to bring it back to
 */
int hmm_cl_release(struct hmm_cl *cl, const void *pointer, size_t length);

/**
 * hmm_cl_stats() - what a device has done
 * @cl: of hmm_cl_open().
 * @st: out.
 *
 * Context: Thread-safe.
 */
void hmm_cl_stats(struct hmm_cl *cl, struct hmm_cl_stats *st);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif

/* The portable wrapper: CPython in one static executable, which needs no file but its own.
 *
 * frozen.c, which build.py makes, holds every Python module that is not compiled into libpython. The table of built-in modules
 * here takes the place of libpython's own, so that the linker leaves out what nobody asks for (sockets, hashes, zlib, expat).
 * build.py reads the names in it: what is listed here needs no source.
 */
#include <Python.h>
#include <malloc.h>
#include <sys/auxv.h>

extern const struct _frozen sidecar_frozen[];

PyObject *PyInit__sidecar_linux(void);
PyObject *PyInit__sidecar_sqlite(void);
PyObject *PyInit__abc(void);
PyObject *PyInit__codecs(void);
PyObject *PyInit__imp(void);
PyObject *PyInit__io(void);
PyObject *PyInit__signal(void);
PyObject *PyInit__stat(void);
PyObject *PyInit__thread(void);
PyObject *PyInit__weakref(void);
PyObject *PyInit_errno(void);
PyObject *PyInit_fcntl(void);
PyObject *PyInit_posix(void);
PyObject *PyInit_select(void);
PyObject *PyInit_time(void);
PyObject *PyMarshal_Init(void);
PyObject *_PyWarnings_Init(void);

struct _inittab _PyImport_Inittab[] = {
    {"_sidecar_linux", PyInit__sidecar_linux},
    {"_sidecar_sqlite", PyInit__sidecar_sqlite},
    {"_abc", PyInit__abc},
    {"_codecs", PyInit__codecs},
    {"_imp", PyInit__imp},
    {"_io", PyInit__io},
    {"_signal", PyInit__signal},
    {"_stat", PyInit__stat},
    {"_thread", PyInit__thread},
    {"_warnings", _PyWarnings_Init},
    {"_weakref", PyInit__weakref},
    {"errno", PyInit_errno},
    {"fcntl", PyInit_fcntl},
    {"marshal", PyMarshal_Init},
    {"posix", PyInit_posix},
    {"select", PyInit_select},
    {"time", PyInit_time},
    {"builtins", NULL},
    {"sys", NULL},
    {NULL, NULL},
};

static void check(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void start(int argc, char **argv)
{
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1; /* there are no locales; and so nothing is put into the environment (PEP 538) */
    check(Py_PreInitialize(&before));

    PyImport_FrozenModules = sidecar_frozen;
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.parse_argv = 0;
    config.site_import = 0;
    config.write_bytecode = 0;
    config.pathconfig_warnings = 0;
    config.use_frozen_modules = 1;
    config.install_signal_handlers = 1; /* SIGPIPE and SIGXFSZ are ignored, as in any Python */
    config.module_search_paths_set = 1; /* and none is there: an import can only be of what is in here */

    /* Paths that are set are not looked for. The executable is what the kernel was told; install copies it where there is no
     * /proc. */
    const char *executable = (const char *)getauxval(AT_EXECFN);
    check(PyConfig_SetBytesString(&config, &config.executable, executable ? executable : ""));
    wchar_t **paths[] = {&config.program_name, &config.home, &config.prefix, &config.exec_prefix, &config.base_prefix,
                         &config.base_exec_prefix, &config.base_executable, &config.stdlib_dir};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        check(PyConfig_SetString(&config, paths[i], L"/"));
    check(PyConfig_SetBytesArgv(&config, argc, argv));
    check(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
}

int main(int argc, char **argv)
{
    /* Each thread would reserve 64 MiB of addresses for what it allocates; ours, which wait for locks, allocate nothing. */
    mallopt(M_ARENA_MAX, 1);
    start(argc, argv);
    PyObject *portable = PyImport_ImportModule("portable");
    if (portable)
        PyObject_CallMethod(portable, "main", NULL); /* which ends the process, unless it fails */
    PyErr_Print();
    return 70;
}

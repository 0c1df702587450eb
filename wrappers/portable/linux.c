/* _sidecar_linux: what sidecar/linux.py asks ctypes for, which no static executable has. The same three functions. */
#include <Python.h>
#include <sys/inotify.h>
#include <sys/prctl.h>

static PyObject *number_or_error(int number)
{
    return number < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(number);
}

static PyObject *new_inotify(PyObject *module, PyObject *nothing)
{
    return number_or_error(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
}

static PyObject *add_watch(PyObject *module, PyObject *arguments)
{
    int fd;
    const char *path; /* of bytes; one with a NUL in it is a ValueError */
    unsigned int mask;
    if (!PyArg_ParseTuple(arguments, "iyI", &fd, &path, &mask))
        return NULL;
    return number_or_error(inotify_add_watch(fd, path, mask));
}

static PyObject *set_option(PyObject *module, PyObject *arguments)
{
    int option;
    unsigned long argument;
    if (!PyArg_ParseTuple(arguments, "ik", &option, &argument))
        return NULL;
    if (prctl(option, argument, 0UL, 0UL, 0UL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"inotify_init", new_inotify, METH_NOARGS, "Return a new inotify descriptor, non-blocking, closed on exec."},
    {"inotify_add_watch", add_watch, METH_VARARGS, "Watch a path for a mask; return the watch's number."},
    {"prctl", set_option, METH_VARARGS, "Set one option of this process (one that takes one number)."},
    {NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_sidecar_linux", .m_size = 0, .m_methods = functions};

PyObject *PyInit__sidecar_linux(void)
{
    return PyModuleDef_Init(&definition);
}

/* _sidecar_sqlite: SQLite's own calls, as few as sqlite_in_python.py makes CPython's `_sqlite3` of.
 *
 * Database and Statement own what SQLite gave them and let go of it once: a close while a statement is open is completed with the
 * last of its statements. Whatever may wait for a disk or a lock does so without the GIL. What SQLite refuses is Refused(extended
 * code, message), lack of memory excepted; what was called wrongly is Misused(message). Extensions cannot be loaded: that is off
 * unless it is asked for, and a static executable could not.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <limits.h>
#include <sqlite3.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    sqlite3 *db; /* NULL once it is closed */
} Database;

typedef struct {
    PyObject_HEAD
    sqlite3_stmt *statement; /* NULL once it has ended; what is no statement, as a comment, has at once */
} Statement;

static PyObject *refused, *misused;
static PyTypeObject *database_type, *statement_type;

static void *refuse(sqlite3 *db)
{
    int code = db ? sqlite3_extended_errcode(db) : SQLITE_NOMEM;
    if ((code & 0xff) == SQLITE_NOMEM)
        return PyErr_NoMemory();
    const char *message = sqlite3_errmsg(db);
    PyObject *text = PyUnicode_DecodeUTF8(message, strlen(message), "replace");
    PyObject *what = text ? Py_BuildValue("iN", code, text) : NULL;
    if (what)
        PyErr_SetObject(refused, what);
    Py_XDECREF(what);
    return NULL;
}

/* --- a database ----------------------------------------------------------------------------------------------------------- */

static PyObject *new_database(PyObject *module, PyObject *arguments)
{
    PyObject *path;
    int milliseconds, code;
    if (!PyArg_ParseTuple(arguments, "O&i", PyUnicode_FSConverter, &path, &milliseconds))
        return NULL;
    Database *self = PyObject_New(Database, database_type);
    if (self) {
        sqlite3 *db;
        const char *name = PyBytes_AS_STRING(path);
        Py_BEGIN_ALLOW_THREADS
        code = sqlite3_open_v2(name, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
        Py_END_ALLOW_THREADS
        self->db = db;
        if (code == SQLITE_OK) {
            sqlite3_busy_timeout(db, milliseconds);
        } else {
            refuse(db);
            Py_CLEAR(self);
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

static PyObject *close_database(Database *self, PyObject *nothing)
{
    sqlite3 *db = self->db;
    self->db = NULL;
    Py_BEGIN_ALLOW_THREADS
    sqlite3_close_v2(db);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void free_database(Database *self)
{
    PyTypeObject *type = Py_TYPE(self);
    sqlite3_close_v2(self->db);
    PyObject_Free(self);
    Py_DECREF(type);
}

static sqlite3 *opened(Database *self)
{
    if (!self->db)
        PyErr_SetString(misused, "Cannot operate on a closed database.");
    return self->db;
}

static PyObject *check(Database *self, PyObject *nothing)
{
    return opened(self) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *in_transaction(Database *self, PyObject *nothing)
{
    return opened(self) ? PyBool_FromLong(!sqlite3_get_autocommit(self->db)) : NULL;
}

static PyObject *changes(Database *self, PyObject *nothing)
{
    return opened(self) ? PyLong_FromLong(sqlite3_changes(self->db)) : NULL;
}

static PyObject *last_insert_rowid(Database *self, PyObject *nothing)
{
    return opened(self) ? PyLong_FromLongLong(sqlite3_last_insert_rowid(self->db)) : NULL;
}

static PyObject *prepare(Database *self, PyObject *sql)
{
    sqlite3 *db = opened(self);
    Py_ssize_t size;
    const char *text = db ? PyUnicode_AsUTF8AndSize(sql, &size) : NULL, *rest;
    if (!text)
        return NULL;
    if (strlen(text) != (size_t)size) {
        PyErr_SetString(misused, "the query contains a null character");
        return NULL;
    }
    sqlite3_stmt *first = NULL, *second = NULL;
    int code, behind = SQLITE_OK;
    Py_BEGIN_ALLOW_THREADS
    code = sqlite3_prepare_v2(db, text, -1, &first, &rest);
    if (code == SQLITE_OK)
        behind = sqlite3_prepare_v2(db, rest, -1, &second, NULL);
    sqlite3_finalize(second);
    Py_END_ALLOW_THREADS
    if (code != SQLITE_OK)
        return refuse(db);
    Statement *made = NULL;
    if (second || behind != SQLITE_OK)
        PyErr_SetString(misused, "You can only execute one statement at a time.");
    else
        made = PyObject_New(Statement, statement_type);
    if (!made) {
        sqlite3_finalize(first);
        return NULL;
    }
    made->statement = first;
    return (PyObject *)made;
}

/* --- a statement ---------------------------------------------------------------------------------------------------------- */

static void end(Statement *self)
{
    sqlite3_stmt *statement = self->statement;
    self->statement = NULL;
    Py_BEGIN_ALLOW_THREADS
    sqlite3_finalize(statement); /* may write: what a statement without a transaction has done is committed here */
    Py_END_ALLOW_THREADS
}

static void free_statement(Statement *self)
{
    PyTypeObject *type = Py_TYPE(self);
    end(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* Return SQLite's code; -1 where an exception has been raised. */
static int bind_one(sqlite3_stmt *statement, int number, PyObject *value)
{
    if (value == Py_None)
        return sqlite3_bind_null(statement, number);
    if (PyLong_Check(value)) {
        int overflow;
        long long integer = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) {
            PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to SQLite INTEGER");
            return -1;
        }
        return sqlite3_bind_int64(statement, number, integer);
    }
    if (PyFloat_Check(value))
        return sqlite3_bind_double(statement, number, PyFloat_AS_DOUBLE(value));
    if (PyUnicode_Check(value)) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(value, &size);
        return text ? sqlite3_bind_text64(statement, number, text, size, SQLITE_TRANSIENT, SQLITE_UTF8) : -1;
    }
    if (PyBytes_Check(value))
        return sqlite3_bind_blob64(statement, number, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), SQLITE_TRANSIENT);
    PyErr_Format(misused, "Error binding parameter %d: type '%s' is not supported", number, Py_TYPE(value)->tp_name);
    return -1;
}

static PyObject *bind(Statement *self, PyObject *values)
{
    int wanted = sqlite3_bind_parameter_count(self->statement);
    Py_ssize_t given = PyTuple_Check(values) ? PyTuple_GET_SIZE(values) : -1;
    if (wanted != given)
        return PyErr_Format(misused,
                            "Incorrect number of bindings supplied. The current statement uses %d, and there are %zd supplied.",
                            wanted, given);
    for (int i = 0; i < wanted; i++) {
        int code = bind_one(self->statement, i + 1, PyTuple_GET_ITEM(values, i));
        if (code > SQLITE_OK)
            return refuse(sqlite3_db_handle(self->statement));
        if (code < SQLITE_OK)
            return NULL;
    }
    Py_RETURN_NONE;
}

/* Tell whether there is another row. Where there is none, or an error, the statement has ended: it holds no lock any more. */
static PyObject *step(Statement *self, PyObject *nothing)
{
    int code = SQLITE_DONE;
    if (self->statement) {
        Py_BEGIN_ALLOW_THREADS
        code = sqlite3_step(self->statement);
        Py_END_ALLOW_THREADS
    }
    if (code == SQLITE_ROW)
        Py_RETURN_TRUE;
    if (code != SQLITE_DONE)
        refuse(sqlite3_db_handle(self->statement)); /* before the end, which would clear it */
    end(self);
    if (code != SQLITE_DONE)
        return NULL;
    Py_RETURN_FALSE;
}

static PyObject *column(sqlite3_stmt *statement, int number)
{
    switch (sqlite3_column_type(statement, number)) {
    case SQLITE_NULL:
        return Py_NewRef(Py_None);
    case SQLITE_INTEGER:
        return PyLong_FromLongLong(sqlite3_column_int64(statement, number));
    case SQLITE_FLOAT:
        return PyFloat_FromDouble(sqlite3_column_double(statement, number));
    }
    int is_text = sqlite3_column_type(statement, number) == SQLITE_TEXT;
    const void *data = is_text ? sqlite3_column_text(statement, number) : sqlite3_column_blob(statement, number);
    int size = sqlite3_column_bytes(statement, number);
    if (!data && (is_text || size))
        return PyErr_NoMemory();
    return is_text ? PyUnicode_DecodeUTF8(data, size, NULL) : PyBytes_FromStringAndSize(data, size);
}

static PyObject *row(Statement *self, PyObject *nothing)
{
    int count = sqlite3_data_count(self->statement);
    PyObject *values = PyTuple_New(count);
    for (int i = 0; values && i < count; i++) {
        PyObject *value = column(self->statement, i);
        if (value)
            PyTuple_SET_ITEM(values, i, value);
        else
            Py_CLEAR(values);
    }
    return values;
}

/* --- the module ----------------------------------------------------------------------------------------------------------- */

static PyMethodDef of_database[] = {
    {"close", (PyCFunction)close_database, METH_NOARGS, "Close it, if it is open."},
    {"check", (PyCFunction)check, METH_NOARGS, "Misused if it is closed."},
    {"in_transaction", (PyCFunction)in_transaction, METH_NOARGS, "Tell whether a transaction has begun."},
    {"changes", (PyCFunction)changes, METH_NOARGS, "Return how many rows the last INSERT, UPDATE or DELETE has changed."},
    {"last_insert_rowid", (PyCFunction)last_insert_rowid, METH_NOARGS, "Return the number of the row inserted last."},
    {"prepare", (PyCFunction)prepare, METH_O, "Return the Statement that a text is."},
    {NULL},
};

static PyMethodDef of_statement[] = {
    {"bind", (PyCFunction)bind, METH_O, "Give its placeholders their values, a tuple."},
    {"step", (PyCFunction)step, METH_NOARGS, "Go on to the next row; tell whether there is one."},
    {"row", (PyCFunction)row, METH_NOARGS, "Return the row that it stands on, a tuple."},
    {NULL},
};

static PyMethodDef functions[] = {
    {"open", new_database, METH_VARARGS, "Open a database; how many milliseconds it waits for others' locks."},
    {NULL},
};

static PyType_Slot slots_of_database[] = {{Py_tp_dealloc, free_database}, {Py_tp_methods, of_database}, {0}};
static PyType_Slot slots_of_statement[] = {{Py_tp_dealloc, free_statement}, {Py_tp_methods, of_statement}, {0}};
#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION)
static PyType_Spec database_spec = {"_sidecar_sqlite.Database", sizeof(Database), 0, FLAGS, slots_of_database};
static PyType_Spec statement_spec = {"_sidecar_sqlite.Statement", sizeof(Statement), 0, FLAGS, slots_of_statement};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_sidecar_sqlite", .m_size = -1, .m_methods = functions};

PyObject *PyInit__sidecar_sqlite(void)
{
    PyObject *module = PyModule_Create(&definition);
    refused = PyErr_NewException("_sidecar_sqlite.Refused", NULL, NULL);
    misused = PyErr_NewException("_sidecar_sqlite.Misused", NULL, NULL);
    database_type = (PyTypeObject *)PyType_FromSpec(&database_spec);
    statement_type = (PyTypeObject *)PyType_FromSpec(&statement_spec);
    if (!module || !refused || !misused || !database_type || !statement_type || PyModule_AddObjectRef(module, "Refused", refused) ||
        PyModule_AddObjectRef(module, "Misused", misused))
        return NULL;
    return module;
}

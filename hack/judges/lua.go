package main

import (
	"context"
	"fmt"
	"time"

	lua "github.com/yuin/gopher-lua"
)

// argoHealth runs a health script as Argo CD does: the object is the global `obj`, the answer a table with status and
// message, there is a second of time, and of Lua's libraries only those that touch nothing outside.
func argoHealth(object map[string]any, script string) (status, message string, err error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString,
	} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	deadline, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(deadline)
	state.SetGlobal("obj", toLua(state, object))
	if err := state.DoString(script); err != nil {
		return "", "", err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "", "", fmt.Errorf("returned %s, not a table", state.Get(-1).Type())
	}
	return lua.LVAsString(table.RawGetString("status")), lua.LVAsString(table.RawGetString("message")), nil
}

func toLua(state *lua.LState, value any) lua.LValue {
	switch found := value.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, each := range found {
			table.RawSetString(key, toLua(state, each))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, each := range found {
			table.Append(toLua(state, each))
		}
		return table
	case string:
		return lua.LString(found)
	case float64:
		return lua.LNumber(found)
	case int64:
		return lua.LNumber(found)
	case bool:
		return lua.LBool(found)
	default:
		return lua.LNil
	}
}
